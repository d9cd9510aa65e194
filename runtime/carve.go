package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// linked returns an error if a path that a person listed as read-only leads
// through a link of the image into what may be written: there its name says
// nothing, and the file behind it could be written by its own.
func (root *containerRoot) linked(p *policy.Policy, rules []landlock.Rule) error {
	for _, f := range p.Filesystem.ReadOnly {
		fd, err := root.open(f.Name, unix.O_PATH, exact)
		if err == nil {
			unix.Close(fd)
		}
		if f.Line == 0 || !errors.Is(err, unix.ELOOP) {
			continue
		}
		if fd, err = root.open(f.Name, unix.O_PATH, following); err != nil {
			continue // it leads nowhere
		}
		name, err := root.name(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
		if writable := specs.WritableAbove(name, rules); writable != "" {
			return fmt.Errorf("cannot keep %s apart: a symbolic link leads from there to %s, within %s, which may be written; name that", f.Name, name, writable)
		}
	}
	return nil
}

// directory returns the real name of the working directory.
func (root *containerRoot) directory(cwd string) (string, error) {
	fd, err := root.open(cwd, unix.O_PATH|unix.O_DIRECTORY, following)
	if err != nil {
		return "", fmt.Errorf("cannot enter the working directory %s: %s: the policy may hide it", cwd, unix.ErrnoName(err.(unix.Errno)))
	}
	defer unix.Close(fd)
	return root.name(fd)
}

// carver mounts what the rules cannot say. It works on a thread in the mount
// namespace of the container's init, which waits meanwhile; no other process
// lives there. Everything is done by descriptor: where a directory is a volume,
// whoever else writes it may change what lies at a path at any time. What he
// moves away takes its mount along, which verify sees.
type carver struct {
	root *containerRoot
	// made are the mounts by the path at which they were made: statx(2),
	// STATX_MNT_ID.
	made map[string]uint64
	// volumes are those that can be seen, where they really are.
	volumes []specs.Volume
	// hidden and readOnly are the carves so far: below the first there is nothing, and a
	// program makes nothing below the second either.
	hidden, readOnly []string
}

// carve makes the mounts in init's namespace.
func (root *containerRoot) carve(pid int, carves []specs.Carve, volumes []specs.Volume) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("cannot enter the container's mount namespace: init is gone: %s", hideENOENT(err))
	}
	defer ns.Close()
	return hooks.OnThread(func() error {
		// A thread that shares its root with others cannot change namespace (setns(2)).
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("cannot enter the container's mount namespace: unshare: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("cannot enter the container's mount namespace: setns: %w", err)
		}
		c := &carver{root: root, made: map[string]uint64{}, volumes: volumes}
		for _, carve := range carves {
			if err := c.one(carve); err != nil {
				return fmt.Errorf("cannot keep %s apart: %w", carve.Path, err)
			}
		}
		return c.verify()
	})
}

func (c *carver) one(carve specs.Carve) error {
	fd, err := c.find(carve)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	var mount int
	if carve.Deny {
		mount, err = c.mask(fd)
	} else {
		mount, err = copyOf(fd, carve)
	}
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if carve.Deny {
		c.hidden = append(c.hidden, carve.Path)
	}
	if carve.ReadOnly {
		c.readOnly = append(c.readOnly, carve.Path)
	}
	c.made[carve.Path], err = mountID(mount)
	return err
}

// find opens what is to be carved, under its own name alone, and makes it if it
// is a directory that is missing. -1 means that there is nothing to do.
func (c *carver) find(carve specs.Carve) (int, error) {
	fd, err := c.root.open(carve.Path, unix.O_PATH, exact)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ELOOP):
		return -1, errors.New("a symbolic link lies on the way; name what it leads to")
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
		return -1, err
	case below(carve.Path, c.hidden):
		return -1, nil
	case carve.Deny && (carve.Within == "" || below(carve.Path, c.readOnly)):
		return -1, c.appears(carve.Path)
	case carve.Within == "" || below(carve.Path, c.readOnly):
		return -1, nil // nobody can put something there
	case carve.Make:
		fd, err := c.root.makeDir(carve.Path)
		switch {
		case errors.Is(err, unix.EROFS) && carve.Deny:
			return -1, c.appears(carve.Path)
		case errors.Is(err, unix.EROFS):
			return -1, nil // nobody can put something there
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return -1, errors.New("what lies on the way is not a directory; name what is there")
		}
		return fd, err
	case !carve.Listed:
		return -1, nil // what it was to be the pin of says so
	}
	return -1, fmt.Errorf("it is not there, and could be made by the program, since %s may be written; make it before, "+
		"or write %q to have a directory made", carve.Within, carve.Path+"/")
}

func below(name string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(name, dir+"/") })
}

// appears returns an error if what is to be hidden, is missing, and cannot be made
// from inside, could be made by others: those who write the volume it is in.
func (c *carver) appears(name string) error {
	for _, v := range c.volumes {
		if below(name, []string{v.Destination}) {
			return fmt.Errorf("it is not there, and whoever writes the volume at %s could make it, to be read; make it before", v.Destination)
		}
	}
	return nil
}

// mask returns what is mounted over something hidden, of the same kind: an
// empty directory, or the null device, whose content is empty whatever is
// written. Both lie in a tree that may be granted, so they hold nothing, and are
// read-only so that their mode and owner stay.
func (c *carver) mask(fd int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		empty, err := newCanary()
		if err != nil {
			return -1, fmt.Errorf("cannot make an empty directory: %w", err)
		}
		defer empty.Close()
		return unix.FcntlInt(empty.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	null, err := c.root.open("/dev/null", unix.O_PATH, exact)
	if err != nil {
		return -1, fmt.Errorf("cannot open the container's null device: %w", err)
	}
	defer unix.Close(null)
	if !isNull(null) {
		return -1, errors.New("the container's null device is another one")
	}
	return copyOf(null, specs.Carve{ReadOnly: true})
}

// copyOf returns a mount of fd that is attached nowhere, with all that is
// mounted below it and as carve says. It shares nothing that is mounted in it
// later with any other.
func copyOf(fd int, carve specs.Carve) (int, error) {
	mount, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if carve.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if carve.NoExec {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		unix.Close(mount)
		return -1, fmt.Errorf("mount_setattr: %w", err)
	}
	return mount, nil
}

// verify looks every carve up by its name: it must be the mount that was made.
func (c *carver) verify() error {
	for name, made := range c.made {
		fd, err := c.root.open(name, unix.O_PATH, exact)
		if err == nil {
			var found uint64
			found, err = mountID(fd)
			unix.Close(fd)
			if err == nil && found == made {
				continue
			}
		}
		return fmt.Errorf("cannot keep %s apart: it was moved meanwhile", name)
	}
	return nil
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID == 0 {
		err = errors.New("the kernel does not number its mounts")
	}
	return st.Mnt_id, err
}
