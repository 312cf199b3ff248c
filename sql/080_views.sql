-- The views that users meet. They follow the active model: activate() replaces them, and init does so again here.
SELECT callipper._replace_views(callipper._active_version());
