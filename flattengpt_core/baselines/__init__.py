"""The peers' methods, re-implemented from their papers, one file each."""
