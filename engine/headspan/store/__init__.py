"""The store on disk and how it is read, without torch."""
