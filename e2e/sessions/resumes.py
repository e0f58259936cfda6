"""Whether clients that came back were resumed, by what the replicas count and by tokens that open nothing any more."""

import collections
import re
import urllib.request

COUNTED = re.compile(r'^plenum_resumes_total\{result="(\w+)"\} (\d+)', re.MULTILINE)


def counted(replica):
    """Connects with a resume token that a replica has seen, by result; nothing of one that does not run."""
    if replica.process.poll() is not None:
        return collections.Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{replica.port}/metrics", timeout=10) as response:
        return collections.Counter({result: int(count) for result, count in COUNTED.findall(response.read().decode())})


class Resumes:
    """Watches from now on that members of the groups come back by resume. The replicas get another key of connection tokens
    until it is judged, so that the token of a connection from before is refused: who is not resumed stays away, or asks for a new
    token."""

    def __init__(self, system, groups):
        self.system, self.groups = system, groups
        system.change_key()
        self.base = [counted(replica) for replica in system.replicas]
        self.sum = collections.Counter()
        self.before = self._members()

    def _members(self):
        looks = (self.system.clients.run("look", group=group)["members"] for group in self.groups)
        return {member["user"]: member for members in looks for member in members}

    def kill(self, number):
        """Kills a replica, whose counts end with it."""
        self.sum += counted(self.system.replicas[number]) - self.base[number]
        self.base[number] = collections.Counter()
        self.system.replicas[number].kill()

    def judge(self, figures, wrong):
        """What came of it; every replica that was killed may run again or not. Then tokens are good again."""
        after = self._members()
        back = sum(member["connects"] - self.before[user]["connects"] for user, member in after.items())
        asked = sum(member["asked"] - self.before[user]["asked"] for user, member in after.items())
        for replica, base in zip(self.system.replicas, self.base):
            self.sum += counted(replica) - base
        self.system.change_key(first=True)
        accepted = self.sum.pop("accepted", 0)
        # The ledger did not answer in time: who is told so comes again with the same token.
        later = self.sum.pop("unavailable", 0)
        figures["came back, their connection tokens void"] = (
            f"{back} times, {accepted} resumes accepted, told to come again: {later}, "
            f"refused: {dict(self.sum) or 'none'}; connection tokens asked for: {asked}")
        checks = (
            (back, "nobody came back"),
            # A resume whose reply did not arrive is accepted as well, and repeated.
            (accepted >= back, f"{back} came back, but only {accepted} resumes were accepted"),
            (not self.sum, f"resumes were refused: {dict(self.sum)}"),
            (not asked, f"getToken was called {asked} times"),
        )
        wrong.extend(text for right, text in checks if not right)
