"""Findings of checks: what is in order, what is wrong and what to type, what could not be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dtl.config.errors import DRIVER, FaultsError, UserError
from dtl.config.text import printable
from dtl.pipeline.faults import describe
from dtl.pipeline.messages import list_notes
from dtl.pipeline.tables import align_columns

OK: Literal["ok"] = "ok"
WRONG: Literal["wrong"] = "wrong"
WARNING: Literal["warning"] = "warning"
UNSEEN: Literal["not checked"] = "not checked"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Parameters
    ----------
    check : str
        Its name.
    where : str
        The driver, all workers, or the address of one.
    outcome : str
        A run would fail with what is ``wrong``, and goes on with a ``warning``.
    message : str
        What was seen; of what is wrong, what was expected, too.
    advice : str
        What to type, where the message does not say it.
    """

    check: str
    where: str
    outcome: Literal["ok", "wrong", "warning", "not checked"]
    message: str
    advice: str = ""


class Examination:
    """Checks, one after the other, each only where what it needs is in order."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def check(
        self,
        name: str,
        make: Callable[[], tuple[Any, str] | str],
        *,
        needs: Sequence[str] = (),
        where: str = DRIVER,
        warns: bool = False,
    ) -> Any:
        """Make a check, unless one that it `needs` was not in order.

        Parameters
        ----------
        make : callable
            Returns what it has found, in words, perhaps after a value; raises what a run would.
        warns : bool
            What is found is a warning: a run says so, too, and goes on.

        Returns
        -------
        object
            The value, or None.
        """
        bad = {f.check for f in self.findings if f.outcome in (WRONG, UNSEEN)}
        if missing := [need for need in needs if need in bad]:
            because = f"mend {', '.join(missing)} first"
            self.findings.append(Finding(name, where, UNSEEN, because))
            return None
        try:
            made = make()
        except FaultsError as error:
            for fault in error.faults:
                outcome = WARNING if warns else WRONG
                found = Finding(fault.check, fault.where, outcome, fault.message, fault.advice)
                self.findings.append(found)
            if name not in {fault.check for fault in error.faults} and not warns:
                because = f"mend {error.faults[0].check} first"
                self.findings.append(Finding(name, where, UNSEEN, because))
            return None
        except UnseenError as error:
            self.findings.append(Finding(name, where, UNSEEN, str(error)))
            return None
        except Exception as error:
            said = f"{describe(error)}{list_notes(error)}"
            self.findings.append(Finding(name, where, WRONG, said))
            return None
        value, said = made if isinstance(made, tuple) else (None, made)
        self.findings.append(Finding(name, where, OK, said))
        return value

    @property
    def status(self) -> int:
        """The exit status: 0 if every check was made, and found nothing wrong."""
        return int(any(finding.outcome in (WRONG, UNSEEN) for finding in self.findings))


class UnseenError(UserError):
    """Something that cannot be checked from here, and is perhaps in order."""


def format_findings(findings: Sequence[Finding]) -> str:
    """Lay findings out, a line each; what is wrong has what to type below it."""
    rows = [
        (finding.check, finding.where, finding.outcome.upper() if finding.outcome != OK else OK)
        for finding in findings
    ]
    heads = align_columns([(*row, "|") for row in rows], right=set()).splitlines()
    lines = []
    for head, finding in zip(heads, findings, strict=True):
        head = head.removesuffix("|")
        first, *more = printable(finding.message, keep="\n").splitlines() or [""]
        lines += [f"{head}{first}".rstrip(), *(f"{' ' * len(head)}{line}" for line in more)]
        if finding.advice:
            lines.append(f"{' ' * len(head)}> {printable(finding.advice)}")
    counts: Counter[str] = Counter(finding.outcome for finding in findings)
    named = {WRONG: "wrong", UNSEEN: "not checked", WARNING: "only a warning"}
    summary = ", ".join(f"{counts[k]} {word}" for k, word in named.items() if counts[k])
    n_checks = len({finding.check for finding in findings})
    lines += ["", f"{n_checks} checks: {summary}." if summary else f"{n_checks} checks: all ok."]
    return "\n".join(lines)
