package proof

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// carve is a place inside of what the rules grant that a mount makes less of:
// specs.Carve, as create stored it. Without any of the words it is a pin.
type carve struct {
	Path                   string
	ReadOnly, Deny, NoExec bool
}

// mounts looks at the places that mounts keep apart; no layer if there are none.
func (b *box) mounts() []Layer {
	if len(b.asked.Carves) == 0 {
		return nil
	}
	l := b.layer("mounts", fmt.Sprintf("%d places read-only, hidden, not executable or pinned", len(b.asked.Carves)))
	if b.life == Ended {
		return []Layer{l}
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", b.InitPID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		l.hide("the root of the first process: %v", err)
		return []Layer{l}
	}
	defer unix.Close(root)
	there := 0
	for _, c := range b.asked.Carves {
		found, err := c.look(root)
		if err != nil {
			l.fault("%s %v", c.Path, err)
		}
		if found {
			there++
		}
	}
	l.Active = fmt.Sprintf("%d of them are there", there)
	l.Verified = "each opened in the root of the first process, and its mount's flags read"
	return []Layer{l}
}

// look says whether the place is there, and what is wrong with it.
func (c carve) look(root int) (bool, error) {
	fd, err := unix.Openat2(root, c.Path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil // as at create, or hidden with what is above it
	}
	if err != nil {
		return true, fmt.Errorf("cannot be opened: %w", err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	var st unix.Statx_t
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st)); err != nil {
		return true, fmt.Errorf("cannot be looked at: %w", err)
	}
	mount := st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	switch {
	case (c.ReadOnly || c.Deny) && (fs.Flags&unix.ST_RDONLY == 0 || !mount):
		return true, errors.New("is not a read-only mount")
	case c.NoExec && fs.Flags&unix.ST_NOEXEC == 0:
		return true, errors.New("can be executed from")
	case !c.ReadOnly && !c.Deny && !c.NoExec && !mount:
		return true, errors.New("is not pinned")
	}
	return true, nil
}
