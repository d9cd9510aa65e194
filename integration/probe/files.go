package main

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var fileVerbs = map[string]verb{
	// read PATH: its first 100 bytes.
	"read": func(a []string) (string, error) { return readAt(unix.AT_FDCWD, a[0], unix.O_RDONLY) },
	// read-at FD PATH: the same, from an open directory.
	"read-at": func(a []string) (string, error) { return readAt(int(number(a[0])), a[1], unix.O_RDONLY) },
	// flood TIMES PATH: opens it again and again; the last errno.
	"flood": func(a []string) (string, error) {
		var err error
		for range number(a[0]) {
			err = openOnly(a[1], unix.O_RDONLY)
		}
		return "", err
	},
	// write PATH: opens a file that exists for writing, and appends.
	"write": func(a []string) (string, error) { return "", writeTo(a[0], unix.O_WRONLY|unix.O_APPEND) },
	// use PATH: opens it for reading and writing, and nothing more.
	"use": func(a []string) (string, error) {
		fd, err := unix.Open(a[0], unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	// create PATH: makes a file.
	"create": func(a []string) (string, error) { return "", writeTo(a[0], unix.O_WRONLY|unix.O_CREAT) },
	// read-truncating PATH: opens for reading only, and empties all the same.
	"read-truncating": func(a []string) (string, error) { return readAt(unix.AT_FDCWD, a[0], unix.O_RDONLY|unix.O_TRUNC) },
	"truncate":        func(a []string) (string, error) { return "", unix.Truncate(a[0], 0) },
	"tmpfile":         func(a []string) (string, error) { return "", writeTo(a[0], unix.O_WRONLY|unix.O_TMPFILE) },
	"list":            listDir,
	// list-fd FD: names in an open directory.
	"list-fd": func(a []string) (string, error) {
		n, err := unix.Getdents(int(number(a[0])), make([]byte, 4096))
		if n == 0 && err == nil {
			return "empty", nil
		}
		return "", err
	},
	"stat": func(a []string) (string, error) {
		var st unix.Stat_t
		return "", unix.Lstat(a[0], &st)
	},
	"readlink": func(a []string) (string, error) { return os.Readlink(a[0]) },
	"chdir":    func(a []string) (string, error) { return "", unix.Chdir(a[0]) },
	"chroot":   func(a []string) (string, error) { return "", unix.Chroot(a[0]) },
	"mkdir":    func(a []string) (string, error) { return "", unix.Mkdir(a[0], 0o777) },
	"rmdir":    func(a []string) (string, error) { return "", unix.Rmdir(a[0]) },
	"unlink":   func(a []string) (string, error) { return "", unix.Unlink(a[0]) },
	"symlink":  func(a []string) (string, error) { return "", unix.Symlink(a[0], a[1]) },
	"rename":   func(a []string) (string, error) { return "", unix.Rename(a[0], a[1]) },
	"exchange": func(a []string) (string, error) {
		return "", unix.Renameat2(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], unix.RENAME_EXCHANGE)
	},
	"link":    func(a []string) (string, error) { return "", unix.Link(a[0], a[1]) },
	"link-fd": linkFD,
	// mknod PATH c|b|p MAJOR MINOR
	"mknod": func(a []string) (string, error) {
		kind := map[string]uint32{"c": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[a[1]]
		return "", unix.Mknod(a[0], kind|0o666, int(unix.Mkdev(uint32(number(a[2])), uint32(number(a[3])))))
	},
	"chmod": func(a []string) (string, error) { return "", unix.Chmod(a[0], uint32(number(a[1]))) },
	"chown": func(a []string) (string, error) { return "", unix.Chown(a[0], int(number(a[1])), int(number(a[1]))) },
	// openat2 PATH RESOLVE
	"openat2": func(a []string) (string, error) {
		top, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0) // the root of RESOLVE_IN_ROOT
		if err != nil {
			return "", err
		}
		defer unix.Close(top)
		fd, err := unix.Openat2(top, a[0], &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: uint64(number(a[1]))})
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	"opath":   reopenPath,
	"handle":  handle,
	"inotify": inotify,
	// walk-fds PATH: opens PATH by way of every descriptor, cwd and root that
	// /proc shows of this process, and every "..": the first that leads there.
	"walk-fds": walkDescriptors,
}

func readAt(dir int, path string, flags int) (string, error) {
	fd, err := unix.Openat(dir, path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}

func writeTo(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("written by the probe\n"))
	return err
}

func listDir(a []string) (string, error) {
	entries, err := os.ReadDir(a[0])
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " "), err
}

// linkFD gives a name in a writable place to a file that was opened by path
// only: linkat(2) with AT_EMPTY_PATH, or through /proc.
func linkFD(a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return "", unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, a[1], unix.AT_SYMLINK_FOLLOW)
}

// reopenPath opens a file by path only, which Landlock lets pass, and then
// opens that descriptor for reading.
func reopenPath(a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readAt(unix.AT_FDCWD, procFD(fd), unix.O_RDONLY)
}

func procFD(fd int) string { return "/proc/self/fd/" + itoa(fd) }

// handle asks for a file's handle and opens the file by it.
func handle(a []string) (string, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, a[0], 0)
	if err != nil {
		return "", err
	}
	mount, err := unix.Open("/tmp", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(mount)
	fd, err := unix.OpenByHandleAt(mount, h, unix.O_RDONLY)
	if err == nil {
		unix.Close(fd)
	}
	return "", err
}

func inotify(a []string) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, a[0], unix.IN_CREATE)
	return "", err
}

func walkDescriptors(a []string) (string, error) {
	starts := []string{"/proc/self/cwd", "/proc/self/root", "/proc/1/root", "/proc/1/cwd", "/proc/thread-self/root"}
	for _, pid := range []string{"self", "1"} {
		fds, _ := os.ReadDir("/proc/" + pid + "/fd")
		for _, e := range fds {
			starts = append(starts, "/proc/"+pid+"/fd/"+e.Name())
		}
	}
	var last error
	for _, start := range starts {
		for _, up := range []string{"", "..", "../..", "../../..", "../../../../../../../.."} {
			got, err := readAt(unix.AT_FDCWD, start+"/"+up+a[0], unix.O_RDONLY)
			if err == nil {
				return start + "/" + up + ": " + got, nil
			}
			last = err
		}
	}
	return "", last
}
