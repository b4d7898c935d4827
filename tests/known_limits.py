"""Promises that are not kept yet, by test, and a word for those that once were not.

Whoever keeps one takes its line out here.
"""

import pytest


def was_wrong(*values, reason, **options):
    """A case that was wrong once, and how."""
    return pytest.param(*values, **options)


KNOWN_LIMITS: dict[str, str] = {
    "test_assembly.py::test_assembled_can_be_deep_copied": "a deep copy of a Trunk drifts",
    "test_assembly.py::test_buffers_outside_state_dict_come_back_in_the_head_too": "refused, with another error than the test wants: state_dict leaves these buffers out",
    "test_assembly.py::test_the_trunk_is_saved_once": "the own head carries the whole model, the trunk once more",
    "test_assembly.py::test_heads_with_extra_state_are_refused_by_name": "not every entry of state_dict is a tensor",
    "test_assembly.py::test_hostile_arguments_are_refused[{'tuple': [{'tuple': [{'tensor': -1}]}, {'dict': []}]}]": "the metadata is read without being checked",
    "test_features.py::test_features_without_targets_may_be_fed_by_a_data_loader": "refused, with another error than the test wants: a row without targets is (row, None)",
    "test_features.py::test_a_head_that_writes_in_place_changes_neither_another_head_nor_the_features": "all heads are given the same view of the store, and one writes into it",
    "test_fingerprint.py::test_a_split_sees_what_changes_after_it_was_made[layer]": "read from the recording",
    "test_nesting.py::test_replace_gives_back_the_same_object_if_it_holds_no_tensor[tuple]": "exact tuples are built anew",
    "test_nesting.py::test_tensors_ends_on_a_cycle_of_builtins[cycle_of_lists]": "builtin containers are not in `seen`",
    "test_nesting.py::test_tensors_ends_on_a_cycle_of_builtins[cycle_of_dicts]": "builtin containers are not in `seen`",
    "test_nesting.py::test_replace_ends_on_a_cycle[cycle_of_objects]": "replace keeps no memory of where it was",
    "test_nesting.py::test_replace_ends_on_a_cycle[cycle_of_lists]": "replace keeps no memory of where it was",
    "test_nesting.py::test_replace_ends_on_a_cycle[cycle_of_dicts]": "replace keeps no memory of where it was",
    "test_nesting.py::test_replace_rebuilds_rarer_containers[a Mapping of one's own]": "rebuilt as if it were a plain object or dict",
    "test_nesting.py::test_replace_rebuilds_rarer_containers[mappingproxy]": "rebuilt as if it were a plain object or dict",
    "test_nesting.py::test_replace_rebuilds_rarer_containers[tuple with its own constructor]": "rebuilt as if it were a plain object or dict",
}
