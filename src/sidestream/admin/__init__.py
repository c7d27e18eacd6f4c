"""What a person may request for jobs, direct jobs and rules, and the diagnosis of why a job waits."""
