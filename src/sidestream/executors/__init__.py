"""Run jobs in transactions that commit the effect of an action together with "done"."""
