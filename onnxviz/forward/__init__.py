"""Running images through the network: sessions, the scan, top-k."""
