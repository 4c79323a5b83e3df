"""What all steps that learn share: the loop, teachers and how they are imitated, several processes."""
