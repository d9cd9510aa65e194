package monitor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// maxAuth is the length of a file of credentials, in bytes.
const maxAuth = 4096

// openProxy returns the proxy that a policy names, or nil. Its credentials are
// read now: a file that cannot be is an error of create.
func openProxy(n policy.Network) (*control.Proxy, error) {
	if n.Proxy == "" {
		return nil, nil
	}
	host, text, err := net.SplitHostPort(n.Proxy)
	if err != nil {
		return nil, fmt.Errorf("cannot use the proxy %s: %w", n.Proxy, err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("cannot use the proxy %s: %w", n.Proxy, err)
	}
	p := &control.Proxy{Host: host, Port: uint16(port)}
	if n.ProxyAuth != "" {
		if p.Auth, err = readAuth(n.ProxyAuth); err != nil {
			return nil, fmt.Errorf("cannot use the proxy's credentials %s: %w", n.ProxyAuth, err)
		}
	}
	return p, nil
}

// readAuth reads "user:password". Its errors do not repeat what it read.
func readAuth(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular():
		return "", errors.New("it is not a file")
	case fi.Mode().Perm()&0o077 != 0:
		return "", errors.New("others than its owner may use it: chmod 600")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAuth+1))
	if err != nil {
		return "", err
	}
	auth := strings.TrimRight(string(b), "\r\n")
	odd := func(r rune) bool { return r < ' ' || r == 0x7f }
	if user, _, ok := strings.Cut(auth, ":"); !ok || user == "" || len(auth) > maxAuth || strings.ContainsFunc(auth, odd) {
		return "", errors.New("it does not hold user:password on one line")
	}
	return auth, nil
}

// byProxy is what an auditor must know of such a policy.
func byProxy(n policy.Network) string {
	return "every connection goes by the proxy " + n.Proxy + ": it resolves the names, and their addresses are not checked"
}
