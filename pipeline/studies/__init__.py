"""Every table and figure of the papers, and the checks that they leave open, each from one cache."""
