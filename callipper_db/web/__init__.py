"""The map: a page where people look at what the database knows, and the same answers as JSON."""
