package proof

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"nemoclaw/hooks/witness"
	"nemoclaw/specs/landlock"
)

// judgeDomain says what is wrong with the domain of t. A program may add layers
// of its own, which only take away; one layer must be ours.
func (c *census) judgeDomain(t witness.Thread) error {
	d, err := c.prover.kernel.Domain(t)
	if err != nil {
		return fmt.Errorf("its domain cannot be read: %w", err)
	}
	if d == nil {
		return nil
	}
	c.layers[len(d.Layers)] = true
	ours, err := c.asked.find(d)
	c.rules[rulesOf(d, ours)] = true
	return err
}

// find returns the layer of d that is what create asked for, and an error if
// none is. Then it is the first, which was there before any program.
func (a *asked) find(d *witness.Domain) (int, error) {
	var first error
	for i := range d.Layers {
		err := a.compare(d, i)
		if err == nil {
			return i, nil
		}
		if first == nil {
			first = err
		}
	}
	return 0, first
}

func rulesOf(d *witness.Domain, layer int) (n int) {
	for _, r := range d.Rules {
		if r.Access[layer] != 0 {
			n++
		}
	}
	return n
}

// compare says how a layer of a domain differs from what create asked for.
func (a *asked) compare(d *witness.Domain, layer int) error {
	l := d.Layers[layer]
	if missing := landlock.Handled(a.ABI) &^ landlock.Access(l.FS); missing != 0 {
		return fmt.Errorf("its domain does not restrict %s", missing.Rights())
	}
	if missing := a.Scopes &^ l.Scope; missing != 0 {
		return errors.New("its domain does not keep signals or sockets inside")
	}
	granted := a.files()
	for _, r := range d.Rules {
		access := landlock.Access(r.Access[layer])
		switch want, known := granted[file{r.Dev, r.Ino}]; {
		case access == 0, known && access == want:
		case known:
			return fmt.Errorf("its domain grants %s beneath inode %d of device %d:%d, and not %s", access.Rights(), r.Ino, unix.Major(r.Dev), unix.Minor(r.Dev), want.Rights())
		case exact(r.Magic) || !a.grantsSomewhere(access):
			return fmt.Errorf("its domain grants %s beneath inode %d of device %d:%d, which create did not", access.Rights(), r.Ino, unix.Major(r.Dev), unix.Minor(r.Dev))
		}
	}
	// Two files of different file systems below an overlay may seem to be one.
	if n := rulesOf(d, layer); n < len(granted) || n > len(a.Granted) {
		return fmt.Errorf("its domain has rules on %d files, and create stored %d", n, len(granted))
	}
	return nil
}

// file is one that rules are on.
type file struct{ dev, ino uint64 }

// files are what was granted: two rules on one file are one in the kernel.
func (a *asked) files() map[file]landlock.Access {
	granted := map[file]landlock.Access{}
	for _, g := range a.Granted {
		granted[file{g.Dev, g.Ino}] |= g.Access
	}
	return granted
}

func (a *asked) grantsSomewhere(access landlock.Access) bool {
	return slices.ContainsFunc(a.Granted, func(g landlock.Granted) bool { return g.Access == access })
}

// exact reports whether a file system shows in stat(2) the numbers that the
// kernel keeps. Overlay and btrfs do not.
func exact(magic uint64) bool {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.XFS_SUPER_MAGIC, unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return false
}
