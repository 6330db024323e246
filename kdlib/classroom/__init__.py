"""What makes a notebook a lesson: only the notebooks use it, and nothing above imports it."""
