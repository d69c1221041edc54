"""What is drawn from runs; matplotlib is imported when a figure is made (extra `report`)."""
