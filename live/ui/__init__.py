"""Display of a session: window, overlay, timeline and drawing."""
