"""What runs inside the sandbox. Imports of ours: ``gridx`` only, copied into the image beside it."""
