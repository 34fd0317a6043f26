"""What every export does, and exports of trained networks with their heads."""
