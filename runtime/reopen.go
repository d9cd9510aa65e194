package runtime

import (
	"fmt"
	"os"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// ruleset returns the rules of a container for one more process: those that the
// monitor kept, whatever lies at their paths now. If the monitor was lost the
// rules are made anew, as they were, or not at all; and nothing is run before it
// is certain that the container's network is still sealed, since nobody watches
// it.
func (r *Runtime) ruleset(id string, pid int, root *containerRoot, stored *confined, p *policy.Policy) (*os.File, error) {
	kept, err := hooks.Ruleset(r.Dir(id), r.box(id))
	if err == nil {
		return kept, nil
	}
	_, _ = r.repair(id) // if it cannot be, the network stays shut, and that is checked
	inner, nerr := hooks.OpenNetns(fmt.Sprintf("/proc/%d/ns/net", pid))
	if nerr != nil {
		return nil, fmt.Errorf("cannot exec in container %s: its init is gone: %s", id, hideENOENT(nerr))
	}
	defer inner.Close()
	if nerr := hooks.Sealed(r.Dir(id), inner, p.Network.Uplink); nerr != nil {
		return nil, &hinted{fmt.Errorf("cannot exec in container %s: its gateway has ended (%s), and its network is not sealed: %s", id, hideENOENT(err), hideENOENT(nerr)),
			"restart the container"}
	}
	again, err := reopen(root, stored)
	if err != nil {
		return nil, &hinted{fmt.Errorf("cannot exec in container %s: landlock: its gateway, which kept the rules, has ended, and they cannot be made anew: %w", id, err),
			"everything that the container does on the network is refused; restart it"}
	}
	return again, nil
}

// reopen fills a ruleset with what was granted at create. A path that leads
// elsewhere by now is an error: the program that runs has a right to the file
// that was moved, and one that joins it would have it to another.
func reopen(root *containerRoot, stored *confined) (_ *os.File, err error) {
	ruleset, err := newRuleset(stored.ABI, stored.Scopes)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ruleset.Close()
		}
	}()
	for _, g := range stored.Granted {
		if err := reopenOne(root, ruleset, g); err != nil {
			return nil, fmt.Errorf("%s: %w", g.Path, err)
		}
	}
	return ruleset, nil
}

func reopenOne(root *containerRoot, ruleset *os.File, g landlock.Granted) error {
	fd, err := root.open(g.Path, unix.O_PATH, exact)
	if err != nil {
		return fmt.Errorf("it is not there any more (%s)", unix.ErrnoName(err.(unix.Errno)))
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != g.Dev || st.Ino != g.Ino {
		return fmt.Errorf("another file lies there than when the container was made (device %d inode %d, not %d %d)", st.Dev, st.Ino, g.Dev, g.Ino)
	}
	if err := ll.LandlockAddPathBeneathRule(int(ruleset.Fd()), &ll.PathBeneathAttr{AllowedAccess: uint64(g.Access), ParentFd: fd}, 0); err != nil {
		return fmt.Errorf("landlock_add_rule: %w", err)
	}
	return nil
}
