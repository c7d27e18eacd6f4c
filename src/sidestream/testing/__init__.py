"""What tests need and the engine does not: private servers, suites, manual clocks. No room imports this one."""
