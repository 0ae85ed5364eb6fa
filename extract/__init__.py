"""Stage 1: video files to frame features."""
