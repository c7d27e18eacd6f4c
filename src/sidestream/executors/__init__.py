"""Run jobs. Each executor owns the transaction that commits the effect of an action together with "done"."""
