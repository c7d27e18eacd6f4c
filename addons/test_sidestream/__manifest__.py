{
    "name": "Sidestream: Tests",
    "summary": "Models for the tests of Sidestream",
    "version": "19.0.0.1.0",
    "category": "Hidden/Tests",
    "license": "LGPL-3",
    "author": "Sidestream",
    "maintainers": ["sidestream"],
    "development_status": "Alpha",
    "website": "https://github.com/sidestream/sidestream",
    "depends": ["sidestream"],
    "data": ["security/ir.model.access.csv", "security/test_sidestream_rules.xml"],
}
