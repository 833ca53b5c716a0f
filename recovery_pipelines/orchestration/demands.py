"""What each check demands, in a line for the UI. Only words: what a check does is in the engine."""

from recovery_pipelines.checks.registry import check_named
from recovery_pipelines.errors import PlanError

_DEMANDS = {
    "backup_verification": "The repository is read back whole before anything is damaged.",
    "all_files_recovered": "Nothing is missing, nothing is there that should not be.",
    "checksums_match": "Every file, or every acknowledged write, is there as it was.",
    "directory_structure_intact": "Types, links and devices are as they were.",
    "permissions_correct": "Mode, owner, extended attributes and times are as they were.",
    "files_accessible": "Every file can be opened and read by its owner.",
    "applications_functional": "SQLite, Parquet and gzip files open and hold the same data.",
    "all_faults_detected": "Every planted fault that changes data was found before the restore.",
    "self_test": "Each check passes an undamaged copy and fails every damaged one.",
    "all_services_running": "Every service answers its probe.",
    "data_accessible": "Every store is read whole; applications read and write their stores.",
    "no_corruption": "The stores' own checkers find nothing.",
    "response_times_normal": "95 % of each client's requests are fast enough, none fails.",
    "no_degradation": "No client is more than twice as slow as before the failure.",
    "power_was_cut": "What was synced is kept, what was not is lost.",
    "automated_recovery": "The failure was noticed and repaired without a person.",
    "volume_was_destroyed": "Nothing of the old volume is on the new one.",
    "backups_complete": "The backups are as recorded, their tools find nothing, no WAL is missing.",
    "database_identical": "Every table and object of the database is as at the restore point.",
    "database_writable": "A row is written, committed and read back.",
    "contents_self_test": "Each damage to the restored database is found by the comparison.",
    "all_services_accessible": "Every host reaches every node and can write, as can the client.",
    "no_packet_loss": "No echo on any path is lost after the restoration.",
    "latency_within_limits": "95 % of the echoes come back in time.",
    "bandwidth_normal": "No path carries less than half of what it did before the failure.",
    "no_split_brain": "At no time did two nodes take writes.",
    "no_acknowledged_write_lost": "What was acknowledged is there, and the nodes are the same.",
    "network_was_cut": "The failure shows in the measured path.",
    "failed_over_in_time": "The standby took over in time.",
    "backup_restores": "The tool brings the backup back without an error.",
    "data_match": "What came back is what was backed up.",
    "backup_is_fresh": "The newest backup is young enough.",
    "marks_are_fresh": "The newest time in the restored data is young enough.",
    "every_file_verified_in_time": "No file has waited too long for its verification.",
    "command_succeeds": "The plan's command finds the restored data right.",
    "rto_met": "Recovery took no longer than the plan allows.",
    "rpo_met": "No more writes are lost than the plan allows.",
}


def demand(name: str) -> str | None:
    """Of a check of ours, or the first paragraph of what another package says of its own."""
    if name in _DEMANDS:
        return _DEMANDS[name]
    try:
        text = type(check_named(name)).__doc__ or ""
    except PlanError:
        return None
    return text.strip().split("\n\n")[0] or None
