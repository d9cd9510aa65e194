package monitor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// stat is what this package needs of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	name  string
	ppid  int
	start uint64 // field 22, clock ticks since boot: tells a reused pid
	args  uint64 // field 48, where its arguments lie: execve(2) moves them, at random
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
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
