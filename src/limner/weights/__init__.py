"""Files and modules meet here: the hub, the layouts, strict loading and saving."""
