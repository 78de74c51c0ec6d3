"""Display of a session: window, overlay and drawing."""
