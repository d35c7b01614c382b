"""Models as data: manifests, the store of their files, where the files come from, the catalogue."""
