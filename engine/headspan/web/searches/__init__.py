"""Search for the nearest images in processes of their own, which read the sketches of the server."""
