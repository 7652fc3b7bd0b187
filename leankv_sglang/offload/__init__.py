"""Pages beyond the device: in host memory, on disk, in a store shared by many machines."""
