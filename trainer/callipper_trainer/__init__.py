"""The torch side of callipper-db: training, embedding and publishing of CaLLiPer models."""
