{
    "name": "Sidestream Chaos",
    "summary": "Jobs whose effects can be counted, for the kill tests",
    "version": "19.0.0.1.0",
    "license": "LGPL-3",
    "author": "Sidestream",
    "website": "https://github.com/sidestream/sidestream",
    "depends": ["sidestream"],
    "data": [],
}
