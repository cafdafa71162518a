"""A run on disk and the view of it: what reports, figures and scripts read. Torch-free."""
