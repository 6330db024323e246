"""A database of optuna's that one process holds: read from memory, written at once.

Samplers and pruners read all trials several times a trial, and each time optuna asks the database again, because
another machine could have written to it: three quarters of the time that a search took beside its trainings. Where no
other machine can, memory knows all that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class WriteThrough(InMemoryStorage):
    """Keeps all studies of a database in memory, and writes every change to it before it returns."""

    def __init__(self, database: BaseStorage) -> None:
        super().__init__()
        self._database = database
        self._study_ids: dict[int, int] = {}  # in memory -> in the database
        self._trial_ids: dict[int, int] = {}
        for study in database.get_all_studies():
            here = super().create_new_study(study.directions, study.study_name)
            self._study_ids[here] = study._study_id
            for name, value in study.user_attrs.items():
                super().set_study_user_attr(here, name, value)
            for name, value in study.system_attrs.items():
                super().set_study_system_attr(here, name, value)
            for trial in sorted(database.get_all_trials(study._study_id), key=lambda one: one.number):
                self._trial_ids[super().create_new_trial(here, template_trial=trial)] = trial._trial_id

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        here = super().create_new_study(directions, study_name)  # raises for a name that is there
        self._study_ids[here] = self._database.create_new_study(directions, self.get_study_name_from_id(here))
        return here

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_user_attr(self._study_ids[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_system_attr(self._study_ids[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        there = self._database.create_new_trial(self._study_ids[study_id], template_trial)
        here = super().create_new_trial(study_id, template_trial)
        self._trial_ids[here] = there
        return here

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._database.set_trial_param(self._trial_ids[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._database.set_trial_state_values(self._trial_ids[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._database.set_trial_intermediate_value(self._trial_ids[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._database.set_trial_user_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._database.set_trial_system_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)
