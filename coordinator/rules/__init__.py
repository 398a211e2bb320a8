"""What the coordinator decides: values in, values out."""
