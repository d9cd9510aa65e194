package denials

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// kinship is what the cgroups of a process say about a sandbox.
type kinship int

const (
	unclear  kinship = iota // it has ended, or has no cgroup to tell it by
	stranger                // it is in another place
	inside
)

// compare holds the text of /proc/PID/cgroup against the lines of a sandbox. A
// program may have made cgroups below its own. What has ended and not been
// waited for is at the top of every hierarchy of version 1 (cgroups(7)).
func compare(lines []string, text string) kinship {
	found := unclear
	for _, line := range lines {
		hierarchy, path := cutPath(line)
		for theirs := range strings.Lines(text) {
			h, p := cutPath(strings.TrimSuffix(theirs, "\n"))
			switch {
			case h != hierarchy || p == "/":
			case p == path || strings.HasPrefix(p, path+"/"):
				found = inside
			default:
				return stranger
			}
		}
	}
	return found
}

// cutPath splits "9:memory:/a/b" before the path.
func cutPath(line string) (hierarchy, path string) {
	i := strings.IndexByte(line, ':')
	j := strings.IndexByte(line[i+1:], ':')
	if i < 0 || j < 0 {
		return line, "/"
	}
	return line[:i+1+j], line[i+j+2:]
}

// readCgroups reads /proc/PID/cgroup into buf. The os package would try to wait
// for such a file like for a socket, which costs more than to read it.
func readCgroups(pid int, buf []byte) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/cgroup", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	return string(buf[:max(n, 0)]), err
}
