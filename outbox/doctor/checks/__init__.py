"""The checks, by what they are about; `outbox.doctor.CHECKS` has their order."""
