package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var processVerbs = map[string]verb{
	// status KEY: of /proc/self/status.
	"status": func(a []string) (string, error) {
		b, err := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, a[0]+":"); ok {
				return strings.TrimSpace(v), nil
			}
		}
		return "", err
	},
	// fds: what this process has open, beyond what Go (a poller, the limits of
	// its cgroup) and this verb opened.
	"fds": func([]string) (string, error) { return descriptors("self") },
	// fds-of PID
	"fds-of": func(a []string) (string, error) { return descriptors(a[0]) },
	"pid":    func([]string) (string, error) { return itoa(os.Getpid()), nil },
	"pids": func([]string) (string, error) {
		pids, err := allPIDs()
		return strings.Join(pids, " "), err
	},
	"ptrace": func(a []string) (string, error) { return "", unix.PtraceSeize(int(number(a[0]))) },
	"vm-read": func(a []string) (string, error) {
		buf := make([]byte, 1)
		_, err := unix.ProcessVMReadv(int(number(a[0])), []unix.Iovec{{Base: &buf[0], Len: 1}}, []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
		return "", err
	},
	"take-fd": func(a []string) (string, error) {
		pidfd, err := unix.PidfdOpen(int(number(a[0])), 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(pidfd)
		_, err = unix.PidfdGetfd(pidfd, int(number(a[1])), 0)
		return "", err
	},
	"kill": func(a []string) (string, error) { return "", unix.Kill(int(number(a[0])), unix.Signal(number(a[1]))) },
	// siege ROUNDS: attacks every process that appears meanwhile.
	"siege": siege,
}

func allPIDs() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	var pids []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, e.Name())
		}
	}
	return pids, err
}

func descriptors(pid string) (string, error) {
	dir := "/proc/" + pid + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var open []string
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "/sys/fs/cgroup/") || strings.HasSuffix(to, "/fd") {
			continue
		}
		open = append(open, e.Name()+"="+to)
	}
	return strings.Join(open, " "), nil
}

// siege looks at every process but its own, again and again, and tries all that
// would give it a hold on one: it returns how many attempts there were and what
// worked.
func siege(a []string) (string, error) {
	self := itoa(os.Getpid())
	attempts := 0
	seen := map[string]bool{}
	won := map[string]bool{}
	try := func(what string, err error) {
		attempts++
		if err == nil {
			won[what] = true
		}
	}
	for range number(a[0]) {
		pids, err := allPIDs()
		if err != nil {
			return "", err
		}
		for _, pid := range pids {
			if pid == self || pid == "1" {
				continue
			}
			seen[pid] = true
			n, _ := strconv.Atoi(pid)
			try("ptrace", unix.PtraceSeize(n))
			for _, name := range []string{"mem", "exe", "environ", "fd/3", "fd/4", "fd/5", "fd/6"} {
				try(name, openOnly("/proc/"+pid+"/"+name, unix.O_RDWR))
				try(name, openOnly("/proc/"+pid+"/"+name, unix.O_RDONLY))
			}
			_, err := fileVerbs["read"]([]string{"/proc/" + pid + "/root/root/secret"})
			try("root", err)
		}
	}
	var what []string
	for w := range won {
		what = append(what, w)
	}
	return fmt.Sprintf("attempts=%d processes=%d won=%s", attempts, len(seen), strings.Join(what, ",")), nil
}

func openOnly(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
