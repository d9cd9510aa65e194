package monitor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stat is what this package needs of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	name  string
	ppid  int
	start uint64 // field 22, clock ticks since boot: tells a reused pid
	args  uint64 // field 48, where its arguments lie: execve(2) moves them, at random
}

func readStat(pid int) (stat, error) {
	// Fifty-two numbers of at most twenty digits, and a name of at most 64 bytes.
	b, err := readProc("/proc/"+strconv.Itoa(pid)+"/stat", make([]byte, 2048))
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// readProc reads the beginning of a file of /proc into b. The os package would
// try to wait for such a file like for a socket, which costs more than to read
// it.
func readProc(file string, b []byte) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, b)
	return b[:max(n, 0)], err
}

// linkOf reads a link of a process's directory below /proc. A first thread that
// has ended has neither executable nor namespaces; what the others have is the
// process's all the same.
func linkOf(pid int, name string) (string, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	to, err := os.Readlink(dir + "/" + name)
	if err == nil {
		return to, nil
	}
	threads, _ := os.ReadDir(dir + "/task")
	for _, t := range threads {
		if to, terr := os.Readlink(dir + "/task/" + t.Name() + "/" + name); terr == nil {
			return to, nil
		}
	}
	return "", err
}

// parseStat looks for the last parenthesis: a program may have one in its
// name, and spaces and line feeds too.
func parseStat(b []byte) (stat, error) {
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		return stat{}, fmt.Errorf("cannot understand a process's stat %q", b)
	}
	fields := bytes.Fields(b[shut+1:]) // from field 3 on
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("cannot understand a process's stat %q", b)
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return stat{}, fmt.Errorf("cannot understand a process's stat: %w", err)
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("cannot understand a process's stat: %w", err)
	}
	st := stat{name: string(b[open+1 : shut]), ppid: ppid, start: start}
	if len(fields) > 45 {
		st.args, _ = strconv.ParseUint(string(fields[45]), 10, 64) // 0: not for us to know
	}
	return st, nil
}
