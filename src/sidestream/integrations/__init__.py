"""What ties Sidestream to other tools. Nothing here is imported unless an application names it."""
