package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/hooks"
	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
)

// containerRoot is the root of a container whose init waits at its fifo, as
// seen from the host: init's final mount namespace.
type containerRoot struct {
	fd       int
	uid, gid int // of the container's user, on the host: owner of what is made
}

// openContainerRoot opens init's root. If init is gone the error says so, in
// words that no engine takes for a missing program.
func openContainerRoot(pid, uid, gid int) (*containerRoot, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot enter the container's root: init is gone (%s)", unix.ErrnoName(err.(unix.Errno)))
	}
	return &containerRoot{fd, uid, gid}, nil
}

func (r *containerRoot) Close() { unix.Close(r.fd) }

// resolve are the ways to look a path up inside the root. The image arranged
// what lies there: nothing leads out of it, and no /proc link is followed.
const (
	following = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	exact     = following | unix.RESOLVE_NO_SYMLINKS
)

func (r *containerRoot) open(name string, flags, resolve uint64) (int, error) {
	return unix.Openat2(r.fd, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
}

// maxTopLevel is how many entries an image's root may have: each directory and
// each file is a rule of its own.
const maxTopLevel = 4096

// topLevel returns the names of the directories and files in the root: images
// made of one program often keep it there. Links grant nothing by themselves.
func (r *containerRoot) topLevel() ([]string, error) {
	fd, err := r.open("/", unix.O_RDONLY|unix.O_DIRECTORY, exact)
	if err != nil {
		return nil, fmt.Errorf("cannot list the container's root: %w", err)
	}
	dir := os.NewFile(uintptr(fd), "/")
	defer dir.Close()
	entries, err := dir.ReadDir(maxTopLevel + 1)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot list the container's root: %w", err)
	case len(entries) > maxTopLevel:
		return nil, fmt.Errorf("cannot list the container's root: it has more than %d entries", maxTopLevel)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// volumes returns where the volumes really are, and an error if one is not what
// the guard judged: its source was swapped, by somebody who may write above it.
func (root *containerRoot) volumes(spec *oci.Spec, list []specs.Volume) ([]string, error) {
	var names []string
	for _, v := range specs.Visible(spec, list) {
		fd, err := root.open(v.Destination, unix.O_PATH, following)
		if err != nil {
			return nil, fmt.Errorf("cannot find volume %s at %s: %s", v.Source, v.Destination, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		name, nerr := root.name(fd)
		unix.Close(fd)
		if err = errors.Join(err, nerr); err != nil {
			return nil, fmt.Errorf("cannot identify volume %s: %w", v.Source, err)
		}
		if specs.IsKernel(name) && !specs.IsKernel(v.Destination) {
			return nil, fmt.Errorf("cannot mount volume %s at %s: a symbolic link leads from there to %s", v.Source, v.Destination, name)
		}
		if st.Dev != v.Dev || st.Ino != v.Ino {
			return nil, fmt.Errorf("cannot mount volume %s: another file was put in its place meanwhile", v.Source)
		}
		names = append(names, name)
	}
	return names, nil
}

// ledAway returns an error if a link of the image leads the kernel's file systems
// or the engine's device nodes elsewhere: there they would be granted as the
// image's own files are.
func (root *containerRoot) ledAway(spec *oci.Spec) error {
	var places []string
	for _, m := range spec.Mounts {
		if at := path.Clean(m.Destination); specs.IsKernel(at) && m.Type != "bind" {
			places = append(places, at)
		}
	}
	for _, d := range spec.Linux.Devices {
		places = append(places, path.Dir(path.Clean(d.Path)))
	}
	for _, at := range places {
		fd, err := root.open(at, unix.O_PATH, exact)
		switch {
		case err == nil:
			unix.Close(fd)
		case errors.Is(err, unix.ELOOP):
			return fmt.Errorf("cannot confine the container: a symbolic link of the image leads %s elsewhere", at)
		}
	}
	return nil
}

// grant adds rules to the ruleset and returns what was granted, and in words
// what was not.
func (s *seal) grant(root *containerRoot, rules []landlock.Rule) (granted []landlock.Granted, notes []string, err error) {
	for _, r := range rules {
		g, note, err := s.grantOne(root, r, rules)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot grant %s: %w", r, err)
		}
		if note != "" {
			notes = append(notes, fmt.Sprintf("landlock: %s: %s", r.Path, note))
		}
		if g != nil {
			granted = append(granted, *g)
		}
	}
	return granted, notes, nil
}

// grantOne adds one rule. A symbolic link on the way grants nothing: otherwise
// an image with a link from /work to / would turn a rule on /work into one on
// everything. What the link leads to has a name of its own, and the policy
// grants it by that or not at all.
func (s *seal) grantOne(root *containerRoot, r landlock.Rule, all []landlock.Rule) (*landlock.Granted, string, error) {
	how := uint64(exact)
	if r.Mount {
		how = following // the engine's mount followed it too, and must be what is found
	}
	fd, err := root.open(r.Path, unix.O_PATH, how)
	if errors.Is(err, unix.ENOENT) && r.Make {
		if fd, err = root.makeDir(r.Path); errors.Is(err, unix.EROFS) && (r.Optional || r.Access&landlock.WriteFile == 0) {
			return nil, "", nil
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		if r.Optional || !strings.Contains(r.Why, ":") {
			return nil, "", nil
		}
		return nil, "", errors.New("the image has no such file or directory there; create it in the image, or take it out of the policy (a directory below a writable one is made if its name ends in \"/\")")
	case errors.Is(err, unix.ELOOP):
		if r.Optional || root.coveredElsewhere(r, all) {
			return nil, "", nil
		}
		return nil, "it is a symbolic link in the image and grants nothing; name what it leads to", nil
	case err != nil:
		return nil, "", err
	}
	defer unix.Close(fd)
	return s.add(root, fd, r)
}

func (s *seal) add(root *containerRoot, fd int, r landlock.Rule) (*landlock.Granted, string, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return nil, "", err
	}
	if r.Mount {
		if why, err := root.otherMount(fd, &st, r); err != nil || why != "" {
			return nil, why, err
		}
	}
	if r.Rdev != 0 && (unix.Mkdev(st.Rdev_major, st.Rdev_minor) != r.Rdev || st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Mode&unix.S_IFMT != unix.S_IFBLK) {
		return nil, "another device was found there, which it does not grant", nil
	}
	access := r.Access & landlock.Handled(s.abi)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access = access.OfFile()
	}
	if access == 0 {
		return nil, "", nil
	}
	if err := ll.LandlockAddPathBeneathRule(int(s.ruleset.Fd()), &ll.PathBeneathAttr{AllowedAccess: uint64(access), ParentFd: fd}, 0); err != nil {
		return nil, "", fmt.Errorf("landlock_add_rule: %w", err)
	}
	name, err := root.name(fd)
	if err != nil {
		return nil, "", err
	}
	return &landlock.Granted{Path: name, Access: access, Why: r.Why,
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, "", nil
}

// otherMount returns why what was found is not the mount that r is about. A
// link on the way may lie in a volume, and so be an agent's to lead anywhere:
// the root is a mount as well, and so is /dev.
func (root *containerRoot) otherMount(fd int, st *unix.Statx_t, r landlock.Rule) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return "", err
	}
	name, err := root.name(fd)
	switch {
	case err != nil:
		return "", err
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return "it is not the root of a volume any more and grants nothing", nil
	case name == "/" || specs.IsKernel(name) && r.Access != landlock.Device:
		return fmt.Sprintf("it leads to %s and grants nothing", name), nil
	case r.Ino != 0 && (st.Ino != r.Ino || unix.Mkdev(st.Dev_major, st.Dev_minor) != r.Dev),
		r.Ino == 0 && fs.Type != unix.TMPFS_MAGIC:
		return "another mount was found there, which it does not grant", nil
	}
	return "", nil
}

// name is the kernel's own name of fd, from the container's root on. A path in
// another mount namespace is shown from that namespace's root (proc(5)).
func (root *containerRoot) name(fd int) (string, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.fd))
	if err != nil {
		return "", err
	}
	if base == "/" || name == base {
		return path.Join("/", strings.TrimPrefix(name, base)), nil
	}
	return strings.TrimPrefix(name, base), nil
}

// coveredElsewhere reports whether what the link r.Path leads to is granted at
// least as much under its own name.
func (root *containerRoot) coveredElsewhere(r landlock.Rule, all []landlock.Rule) bool {
	fd, err := root.open(r.Path, unix.O_PATH, following)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	real, err := root.name(fd)
	if err != nil {
		return false
	}
	for _, other := range all {
		if other.Path != r.Path && (real == other.Path || strings.HasPrefix(real, other.Path+"/")) && other.Access&r.Access == r.Access {
			return true
		}
	}
	return false
}

// makeDir makes name and what is missing above it, owned by the container's
// user, never through a symbolic link, and returns it opened as a path.
func (root *containerRoot) makeDir(name string) (int, error) {
	parent, err := root.open("/", unix.O_PATH|unix.O_DIRECTORY, exact)
	if err != nil {
		return -1, err
	}
	for _, part := range strings.Split(strings.Trim(path.Clean(name), "/"), "/") {
		child, err := root.makeOne(parent, part, name == "/tmp")
		unix.Close(parent)
		if err != nil {
			return -1, err
		}
		parent = child
	}
	return parent, nil
}

// mkdir makes the directory name in parent. On a file system of the container's
// user namespace, a tmpfs, only who has a number there can own something
// (EOVERFLOW): there it is made as the container's user, who is asked for no
// permission all the same.
func (root *containerRoot) mkdir(parent int, name string) error {
	err := unix.Mkdirat(parent, name, 0o755)
	if !errors.Is(err, unix.EOVERFLOW) {
		return err
	}
	return hooks.OnThread(func() error {
		if err := borrow(root.uid, root.gid, 1<<unix.CAP_DAC_OVERRIDE); err != nil {
			return err
		}
		return unix.Mkdirat(parent, name, 0o755)
	})
}

// makeOne opens part in the directory parent, and makes it if it is missing.
func (root *containerRoot) makeOne(parent int, part string, shared bool) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(parent, part, how)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := root.mkdir(parent, part); err != nil {
		return -1, err
	}
	if fd, err = unix.Openat2(parent, part, how); err != nil {
		return -1, err
	}
	// By descriptor: nobody can put a link in its place in between.
	if err = unix.Fchownat(fd, "", root.uid, root.gid, unix.AT_EMPTY_PATH); err == nil && shared {
		err = os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o777|os.ModeSticky)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
