"""Pictures. Matplotlib takes a second to import, so import these modules where they are called."""
