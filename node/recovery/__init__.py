"""What an operator does when a cluster cannot help itself: its data back from a survivor, or from a backup."""
