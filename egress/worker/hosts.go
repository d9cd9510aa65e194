package worker

import (
	"net/netip"

	"nemoclaw/egress/control"
)

// hosts is the hosts file that the engine made for the container, by
// `docker run --add-host` among others. A program reads it itself and dials the
// address: it means the name. The nil hosts is empty.
type hosts struct {
	names map[netip.Addr][]string
	at    map[string][]netip.Addr
}

func newHosts(lines []control.Host) *hosts {
	h := &hosts{names: map[netip.Addr][]string{}, at: map[string][]netip.Addr{}}
	for _, l := range lines {
		addr := l.Addr.Unmap()
		for _, name := range l.Names {
			h.names[addr] = append(h.names[addr], name)
			h.at[name] = append(h.at[name], addr)
		}
	}
	return h
}

// addrs are those that the file gives to a name.
func (h *hosts) addrs(name string) []netip.Addr {
	if h == nil {
		return nil
	}
	return h.at[name]
}

// meant is what a program means that dialed an address: the address, if rules
// name that or the file does not; else the first of its names that rules allow,
// or simply the first.
func (h *hosts) meant(dialed target, allowed func(target) bool) target {
	if h == nil || !dialed.addr.IsValid() {
		return dialed
	}
	names := h.names[dialed.addr.Unmap()]
	if len(names) == 0 || allowed(dialed) {
		return dialed
	}
	for _, name := range names {
		if t := (target{host: name, port: dialed.port}); allowed(t) {
			return t
		}
	}
	return target{host: names[0], port: dialed.port}
}
