"""Check what training needs of a host and cannot explain by itself: MXNet, the GPU's driver, and storage."""
