{
    "name": "Benchmark: the jobs that every side runs",
    "version": "19.0.0.1.0",
    "license": "LGPL-3",
    "author": "Sidestream",
    "depends": ["sidestream"],
    "data": ["ir.model.access.csv"],
}
