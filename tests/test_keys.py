"""Every configuration key is set by a test to another value than its default, with an effect.

`SHOWN` names the test that asserts what a key does. What can be checked is checked here, without
running that test: it exists, it asserts something, and it or a helper of its file (or of
tests.support) sets a key of that name to another value than the default. A key that classes share
stands once, at the class that declares it.
"""

import dataclasses
import functools

import pytest

from raysys.bench.suites import SUITES
from raysys.cli import COMMANDS, resolve
from tests.support import keys

SHOWN = {
    "JobConfig": {
        "run": "test_locations_become_absolute_once",
        "seed": "test_a_world_is_written_once_and_kept",
        "force": "test_an_interrupted_run_keeps_what_is_finished",
        "cache_dir": "test_builds_live_on_object_stores",
        "progress": "test_off_shows_no_stage",
        "tracking": "test_a_log_becomes_answers_and_a_second_run_reuses_everything",
    },
    "RayConfig": {
        "address": "test_a_dead_cluster_is_one_line_that_names_where_the_address_stood",
        "num_cpus": "test_without_an_address_a_private_cluster_is_started",
        "object_store_mb": "test_the_object_store_has_the_size_asked_for",
    },
    "WorldSpec": dict.fromkeys(
        (
            *("n_users", "n_items", "n_interactions", "n_tastes", "days"),
            *("skew", "drift", "taste_pull", "noise", "rated"),
        ),
        "test_each_setting_makes_another_world",
    ),
    "PrepareConfig": {
        "source": "test_the_format_is_what_the_settings_say_and_not_the_name",
        "mode": "test_an_append_equals_a_full_rebuild_up_to_numbering",
        "items": "test_an_item_file_describes_the_items",
        "split": "test_shares_of_users_or_ratings_are_held_out",
        "folds": "test_given_folds_mean_what_the_split_says",
        "val_cut": "test_cuts_are_quantiles_of_time_or_seconds",
        "test_cut": "test_cuts_are_quantiles_of_time_or_seconds",
        "val_share": "test_shares_of_users_or_ratings_are_held_out",
        "test_share": "test_shares_of_users_or_ratings_are_held_out",
        "min_user_rows": "test_users_and_items_with_too_few_or_many_rows_are_dropped",
        "max_user_rows": "test_users_and_items_with_too_few_or_many_rows_are_dropped",
        "min_item_rows": "test_users_and_items_with_too_few_or_many_rows_are_dropped",
        "core_rounds": "test_users_and_items_with_too_few_or_many_rows_are_dropped",
        "dedupe": "test_which_of_several_rows_stays",
        "events": "test_events_outside_the_list_are_set_aside_and_ignored_ones_are_left_out",
        "ignore_events": "test_events_outside_the_list_are_set_aside_and_ignored_ones_are_left_out",
        "min_rating": "test_ratings_out_of_range_are_set_aside",
        "max_rating": "test_ratings_out_of_range_are_set_aside",
        "liked_levels": "test_liked_levels_are_those_named",
        "negative_events": "test_negative_events_are_not_liked",
        "max_bad_share": "test_a_larger_share_of_bad_rows_stops_the_job",
    },
    "ColumnsConfig": {
        "user": "test_columns_are_read_under_the_names_given",
        "item": "test_columns_are_read_under_the_names_given",
        "rating": "test_columns_are_read_under_the_names_given",
        "timestamp": "test_columns_are_read_under_the_names_given",
        "event": "test_columns_are_read_under_the_names_given",
        "names": "test_text_without_a_header_is_read_under_the_names_given",
    },
    "FormatConfig": {
        "kind": "test_the_format_is_what_the_settings_say_and_not_the_name",
        "separator": "test_any_separator_reads_back",
        "header": "test_text_without_a_header_is_read_under_the_names_given",
        "encoding": "test_encodings",
        "quote": "test_tsv_with_the_quote_given_reads_back",
        "escape": "test_escaped_values_read_back",
        "time": "test_times_with_a_zone_behind_are_read_and_others_are_advised",
    },
    "ItemsColumnsConfig": dict.fromkeys(
        ("item", "title", "names"), "test_columns_are_named_or_proposed"
    ),
    "LookConfig": {"exact": "test_a_sample_says_so_and_exact_reads_all"},
    "TrainConfig": {
        "model": "test_own_vectors_need_no_log",
        "source": "test_own_vectors_need_no_log",
        "ids": "test_shards_of_embeddings_are_the_matrix",
        "similarity": "test_narrow_vectors_stay_dense_where_codes_are_no_smaller",
        "refit": "test_what_was_planted_is_learned",
        "select": "test_what_the_loop_selects_by_is_the_evaluators",
        "horizon_days": "test_a_far_horizon_keeps_the_plain_form",
    },
    "Conv4RecConfig": {
        "latent": "test_sizes_of_the_blocks",
        "level_latent": "test_sizes_of_the_blocks",
        "channels": "test_sizes_of_the_blocks",
        "level_channels": "test_sizes_of_the_blocks",
        "consume_loss": "test_losses_and_gradients_equal_the_dense_formula",
        "items_loss": "test_the_likelihood_is_that_of_a_sample_where_the_settings_say_so",
        "negatives": "test_more_negatives_come_nearer_to_the_whole",
        "zero_diagonal": "test_losses_and_gradients_equal_the_dense_formula",
        "dropout": "test_dropout_takes_the_same_entries_from_a_latent_and_from_the_items_own_share",
        "weight_decay": "test_decay_acts_on_the_level_blocks_item_vectors",
        "profile_exponent": "test_profiles_count_by_a_power_of_their_length",
        "profile_half_life_days": "test_old_cells_weigh_less",
    },
    "OptimConfig": {
        "lr": "test_steps_follow_the_learning_rate_and_weights_decay",
        "schedule": "test_the_learning_rate_warms_up_and_falls_to_zero",
        "warmup_epochs": "test_the_learning_rate_warms_up_and_falls_to_zero",
        "epochs": "test_training_ends_after_so_many_epochs_without_gain",
        "batch_size": "test_a_batch_is_at_most_an_eighth_of_the_data",
        "accumulate": "test_a_batch_in_parts_makes_the_same_step",
        "weight_decay": "test_steps_follow_the_learning_rate_and_weights_decay",
        "patience": "test_training_ends_after_so_many_epochs_without_gain",
        "checkpoint_steps": "test_a_resumed_run_ends_with_the_same_weights",
    },
    "CompresSAEConfig": {
        "preset": "test_the_papers_preset_encodes_with_a_trained_encoder",
        "code_dim": "test_sizes_of_the_code",
        "n_active": "test_sizes_of_the_code",
        "wide_weight": "test_the_papers_preset_encodes_with_a_trained_encoder",
    },
    "CompressorConfig": {
        "value_bits": "test_sizes_of_the_code",
        "keep": "test_sizes_of_the_code",
    },
    "LaunchConfig": {
        "workers": "test_gpus_are_taken_where_there_are_enough_or_as_asked",
        "max_failures": "test_lost_workers_are_recovered_from_as_often_as_asked",
        "gpu": "test_gpus_are_taken_where_there_are_enough_or_as_asked",
    },
    "IndexParams": {
        "kind": "test_an_opened_index_answers",
        "n_lists": "test_lists_and_effort_are_those_asked_for",
        "target_recall": "test_a_lower_target_needs_fewer_lists",
        "effort": "test_lists_and_effort_are_those_asked_for",
        "n_shards": "test_a_build_of_shards_opens_as_the_whole_and_one_by_one",
    },
    "EvaluateConfig": {
        "period": "test_the_val_period_is_evaluated_with_a_model_fitted_before_it",
        "via": "test_codes_and_index_come_close_to_the_model",
        "rescore": "test_codes_and_index_come_close_to_the_model",
    },
    "RefreshConfig": {
        "source": "test_new_logs_are_published_once_and_can_be_taken_back",
        "events": "test_events_are_taken_by_the_name_of_their_file",
        "items": "test_of_two_at_once_one_works_and_a_killed_one_leaves_nothing_behind",
        "retry": "test_new_logs_are_published_once_and_can_be_taken_back",
        "accept": "test_new_logs_are_published_once_and_can_be_taken_back",
        "dry_run": "test_events_are_taken_by_the_name_of_their_file",
    },
    "BacktestConfig": {"windows": "test_every_window_is_a_run_of_its_own"},
    "MeasureConfig": {
        "ranking": "test_gamma_moves_the_discover_ranking",
        "gamma": "test_gamma_moves_the_discover_ranking",
        "protocol": "test_leave_one_out_protocols",
        "top_k": "test_the_report_holds_the_cuts_penalties_and_intervals_asked_for",
        "betas": "test_the_report_holds_the_cuts_penalties_and_intervals_asked_for",
        "baselines": "test_targets_are_counted",
        "replicates": "test_the_report_holds_the_cuts_penalties_and_intervals_asked_for",
        "horizons": "test_horizons_split_targets_and_users_by_days",
    },
    "ScoreConfig": {
        "top_k": "test_every_users_list_is_what_the_service_answers",
        "ranking": "test_every_users_list_is_what_the_service_answers",
        "gamma": "test_settings_of_the_ranking_reach_the_lists",
        "exclude_seen": "test_settings_of_the_ranking_reach_the_lists",
        "output": "test_every_users_list_is_what_the_service_answers",
        "batch_users": "test_every_users_list_is_what_the_service_answers",
    },
    "TuneConfig": {
        "space": "test_values_have_the_type_of_the_key_that_they_are_for",
        "metrics": "test_settings_say_how_a_sweep_draws_and_what_it_compares",
        "sampler": "test_a_sweep_compares_its_finalists_and_moves_nothing_of_the_run",
        "trials": "test_other_shells_pause_stop_and_add",
        "max_seconds": "test_budgets_and_a_dry_run_end_a_sweep",
        "max_worker_seconds": "test_budgets_and_a_dry_run_end_a_sweep",
        "concurrent": "test_settings_reach_the_runner",
        "stop_early": "test_settings_reach_the_runner",
        "stop_on": "test_settings_reach_the_runner",
        "finalists": "test_a_sweep_tries_the_defaults_first_and_says_what_became_of_each",
        "seeds": "test_a_sweep_tries_the_defaults_first_and_says_what_became_of_each",
        "replicates": "test_a_sweep_compares_its_finalists_and_moves_nothing_of_the_run",
        "name": "test_a_sweep_goes_on_as_it_was_begun_and_gets_more_trials",
        "dry_run": "test_budgets_and_a_dry_run_end_a_sweep",
    },
    "SweepConfig": {"sweep": "test_the_state_of_a_sweep_is_seen_from_other_shells"},
    "ResumeConfig": {"concurrent": "test_a_sweep_goes_on_as_it_was_begun_and_gets_more_trials"},
    "AddConfig": {"trials": "test_a_sweep_goes_on_as_it_was_begun_and_gets_more_trials"},
    "SweepsBenchConfig": {
        "parts": "test_the_parts_of_the_suite",
        "trials": "test_the_parts_of_the_suite",
        "epochs": "test_the_parts_of_the_suite",
        "metric": "test_the_parts_of_the_suite",
    },
    "BenchConfig": {
        "suite": "test_the_last_suite_counts",
        "save": "test_a_record_says_where_when_with_what_and_by_which_commit",
    },
    "AgreementBenchConfig": {
        "table": "test_a_table_of_models_and_outcomes",
        "system": "test_a_table_of_models_and_outcomes",
        "reference": "test_a_table_of_models_and_outcomes",
        "metrics": "test_a_table_of_models_and_outcomes",
        **dict.fromkeys(
            (
                *("online", "bias", "drift", "feedback", "repeats"),
                *("n_users", "n_items", "n_interactions", "replicates"),
            ),
            "test_agreement",
        ),
    },
    "MinutesBenchConfig": {
        "logs": "test_a_row_per_log_and_engine",
        "data": "test_logs_are_files_of_the_data_folder",
    },
    "AnswerBenchConfig": {
        "source": "test_the_suite_has_a_row_for_every_ranking_and_one_for_the_replica",
        "sizes": "test_the_suite_has_a_row_for_every_ranking_and_one_for_the_replica",
        "users": "test_the_suite_has_a_row_for_every_ranking_and_one_for_the_replica",
        "keep": "test_the_suite_has_a_row_for_every_ranking_and_one_for_the_replica",
    },
    "CodesBenchConfig": {
        "source": "test_codes",
        "similarity": "test_codes",
        "limit": "test_codes_suite_compares_at_equal_bytes",
        "sizes": "test_codes_suite_compares_at_equal_bytes",
        "queries": "test_codes",
        "peers": "test_codes",
        "plot": "test_codes_suite_compares_at_equal_bytes",
        "parts": "test_the_papers_modes_are_compared_over_compression",
    },
    "EvaluateBenchConfig": {
        "sizes": "test_users_are_evaluated_in_a_process_of_its_own",
        **dict.fromkeys(
            (
                *("n_items", "rows_per_user", "latent"),
                *("baselines", "replicates", "metric_users"),
            ),
            "test_evaluate",
        ),
    },
    "ExperimentsBenchConfig": dict.fromkeys(
        ("streams", "n_users", "lifts"), "test_reports_are_hardly_ever_wrong"
    ),
    "OrderBenchConfig": dict.fromkeys(
        ("data", "methods", "epochs", "minutes", "replicates"),
        "test_only_what_sees_the_order_finds_the_next_item",
    ),
    "PrepareBenchConfig": dict.fromkeys(("sizes", "n_users", "n_items", "peers"), "test_prepare"),
    "RatingsBenchConfig": dict.fromkeys(
        ("source", "data", "held_out", "splits", "factors"), "test_ratings"
    ),
    "RecoveryBenchConfig": dict.fromkeys(
        (
            *("draws", "n_users", "n_items", "rank", "latent"),
            *("lr", "epochs", "discover", "gammas"),
        ),
        "test_recovery",
    ),
    "RetrievalBenchConfig": dict.fromkeys(
        (
            *("source", "limit", "grow", "keep", "train_rows", "n_active"),
            *("target_recall", "queries", "kinds", "build_threads", "peers"),
        ),
        "test_retrieval",
    ),
    "SteerBenchConfig": dict.fromkeys(("users", "timed"), "test_muting_is_measured"),
    "ScaleBenchConfig": {"sizes": "test_scale"},
    "ServeBenchConfig": {
        **dict.fromkeys(
            ("connections", "seconds", "events"), "test_the_same_app_behind_each_server"
        ),
        "swaps": "test_events_are_seen_by_clients",
    },
    "EventsBenchConfig": dict.fromkeys(
        ("seconds", "events", "kills"), "test_events_are_taken_seen_and_not_lost"
    ),
    "LoopBenchConfig": dict.fromkeys(
        (
            *("weeks", "n_users", "n_items", "n_interactions", "bias", "taste_drift"),
            *("latent", "ab_weeks"),
        ),
        "test_users_answer_the_lists_of_services",
    ),
    "TrainBenchConfig": {
        **dict.fromkeys(
            ("n_items", "batch", "profile", "latent", "steps", "workers"), "test_steps_of_training"
        ),
        **dict.fromkeys(
            ("epochs", "rounds", "n_users", "n_catalogue", "n_interactions"),
            "test_workers_of_training",
        ),
    },
    "VolumeBenchConfig": dict.fromkeys(("sizes", "rows_per_user", "n_items"), "test_volume"),
    "DoctorConfig": {"source": "test_a_log_is_looked_at_where_one_is_named"},
    "PipelineConfig": dict.fromkeys(
        ("source", "items", "split"), "test_shared_keys_are_handed_down_to_the_stages"
    ),
    "CompareConfig": {
        "other": "test_compare_with_a_baseline_and_with_another_run",
        "via": "test_compare_takes_the_settings_of_both_evaluations",
        "against": "test_compare_takes_the_settings_of_both_evaluations",
        "period": "test_the_val_period_is_evaluated_with_a_model_fitted_before_it",
        "protocol": "test_compare_takes_the_settings_of_both_evaluations",
        "ranking": "test_compare_takes_the_settings_of_both_evaluations",
        "rescore": "test_compare_takes_the_settings_of_both_evaluations",
        "replicates": "test_compare_takes_the_settings_of_both_evaluations",
    },
    "QueryConfig": {
        "url": "test_a_service_that_is_not_there",
        "user_id": "test_a_stored_user",
        "profile": "test_a_profile_on_the_command_line",
        "titles": "test_titles_filters_and_levels",
        "similar_to": "test_similar_items_have_no_probabilities",
        "vector": "test_vectors_on_the_command_line_and_in_files",
        "vectors": "test_vectors_on_the_command_line_and_in_files",
        "explain": "test_own_vectors_change_at_once_and_are_taken_in_by_the_next_index",
        "top_k": "test_a_stored_user",
        "ranking": "test_settings_of_the_ranking",
        "exclude_seen": "test_settings_of_the_ranking",
        "gamma": "test_settings_of_the_ranking",
        "allow": "test_titles_filters_and_levels",
        "deny": "test_titles_filters_and_levels",
        "levels": "test_titles_filters_and_levels",
        "atoms": "test_atoms_on_the_command_line",
        "because": "test_reasons_and_fallbacks",
        "fallback": "test_reasons_and_fallbacks",
        "scenario": "test_presets_are_those_of_a_service",
    },
    "ServiceConfig": {"url": "test_a_service_is_told_what_to_serve"},
    "RollbackConfig": {
        "build_id": "test_a_run_goes_back_without_a_service",
        "kind": "test_changes_go_back_and_the_index_stays",
    },
    "KeyConfig": dict.fromkeys(
        ("keys", "name", "scopes", "per_second", "remove"),
        "test_keys_are_written_replaced_and_removed",
    ),
    "ExperimentReportConfig": dict.fromkeys(
        ("events", "min_rating", "window_s", "horizon_s", "outcome", "control", "alpha"),
        "test_settings_of_the_report",
    )
    | {"name": "test_a_name_may_hold_anything"},
    "LoadConfig": dict.fromkeys(
        ("connections", "seconds", "k", "ranking", "batch", "users"),
        "test_a_closed_loop_asks_as_its_settings_say",
    )
    | {
        "per_second": "test_an_open_loop_keeps_its_rate",
        "retries": "test_lost_answers_are_counted",
    },
    "UpdateConfig": dict.fromkeys(
        ("upsert", "delete"), "test_deletions_of_a_trained_model_hold_and_new_vectors_are_ranked"
    )
    | {"refresh": "test_refresh_counts_what_came_since_the_training"},
    "AtomsConfig": {
        "atom": "test_strongest_items_of_an_atom",
        "items": "test_shared_atoms_of_two_items",
        "names": "test_names_are_proposed_and_corrections_stay",
        "top_k": "test_strongest_items_of_an_atom",
    },
    "ServeConfig": {
        "name": "test_settings_reach_serve",
        "build_id": "test_settings_reach_the_deployment",
        "verify": "test_build_takes_what_a_serve_config_file_typed",
        "replicas": "test_build_describes_one_deployment",
        "max_replicas": "test_replicas_follow_the_requests",
        "timeout_s": "test_an_app_has_the_keys_logs_presets_and_limits_of_its_settings",
        "keys": "test_an_app_has_the_keys_logs_presets_and_limits_of_its_settings",
        "logs": "test_an_app_has_the_keys_logs_presets_and_limits_of_its_settings",
        "scenarios": "test_an_app_has_the_keys_logs_presets_and_limits_of_its_settings",
        "cpus": "test_settings_reach_the_deployment",
        "follow_s": "test_only_the_current_index_is_followed",
        "max_ongoing_requests": "test_settings_reach_the_deployment",
        "max_queued_requests": "test_settings_reach_the_deployment",
        "host": "test_settings_reach_serve",
        "port": "test_settings_reach_serve",
        "route_prefix": "test_settings_reach_serve",
        "local": "test_serving_without_ray",
    },
    "EventsConfig": dict.fromkeys(
        ("take", "ttl_days", "kept", "clock"), "test_an_app_takes_events_as_its_settings_say"
    ),
    "ExperimentConfig": dict.fromkeys(
        ("name", "arms", "salt", "impressions"), "test_an_app_runs_the_experiment_of_its_settings"
    ),
    "BuildsConfig": dict.fromkeys(
        ("pin", "name", "unpin"),
        "test_builds_are_listed_with_what_they_are_made_from_and_what_keeps_them",
    ),
    "GcConfig": dict.fromkeys(
        ("keep", "older_days", "dry_run"), "test_gc_says_first_and_removes_when_told"
    ),
    "ExportConfig": {
        "to": "test_there_and_back_answers_are_the_same",
        "build_id": "test_wrong_settings_are_one_line",
    },
    "ForgetConfig": {
        "user_id": "test_one_who_is_held_nowhere_is_remembered_all_the_same",
        "user_ids": "test_many_users_and_files_of_them",
        "users_file": "test_many_users_and_files_of_them",
    },
    "EraseConfig": {"user_id": "test_an_erased_user_is_gone_from_the_files"},
}


@functools.cache
def defaults():
    """Return {(declaring class, key): its defaults} of all commands and suites."""
    found = {}

    def add(settings):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if dataclasses.is_dataclass(value):
                add(value)
                continue
            classes = type(settings).__mro__
            owners = [c for c in classes if field.name in vars(c).get("__annotations__", ())]
            found.setdefault((owners[-1].__name__, field.name), []).append(value)

    for name in COMMANDS:
        for suite in SUITES if name == "bench" else [""]:
            add(resolve(name, [f"suite={suite}"])[1]())
    return found


def entries():
    return [(owner, key, test) for owner, shown in SHOWN.items() for key, test in shown.items()]


def test_every_key_has_a_test_that_shows_what_it_does():
    shown = {(owner, key) for owner, key, _ in entries()}
    lacking = [".".join(one) for one in defaults() if one not in shown]
    assert not lacking, "add a test, and its name to SHOWN"
    gone = [".".join(one) for one in shown if one not in defaults()]
    assert not gone, "no command has such keys any more"


@pytest.mark.parametrize(("owner", "key", "test"), entries())
def test_the_test_of_a_key_sets_it_and_asserts_something(owner, key, test):
    places = keys.tests().get(test)
    assert places, f"there is no test {test}"
    for module, function in places:
        nodes = keys.reached(module, function)
        values = {repr(v) for node in nodes for name, v in keys.assignments(node) if name == key}
        plain = {form for value in defaults()[owner, key] for form in keys.forms(value)}
        if values - plain and any(keys.asserts(node) for node in nodes):
            return
    raise AssertionError(f"{test} sets {key} to {sorted(values) or 'nothing'}, or asserts nothing")
