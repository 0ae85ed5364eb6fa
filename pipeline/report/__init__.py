"""Studies as pages that people read: HTML, Markdown with pictures, LaTeX."""
