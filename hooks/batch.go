package hooks

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A batch is changes of one namespace's rules, which take effect together or not
// at all. The library would ask the kernel to answer each message of it and to
// repeat each rule, and wait for all that: for the fence that took longer than
// the change itself.
type batch struct {
	*nftables.Conn // queues the changes
	queued         []netlink.Message
}

// errQueued is how the library's Flush ends: nothing was sent.
var errQueued = errors.New("queued")

func newBatch() (*batch, error) {
	b := new(batch)
	var err error
	b.Conn, err = nftables.New(nftables.WithTestDial(func(m []netlink.Message) ([]netlink.Message, error) {
		b.queued = m
		return nil, errQueued
	}))
	return b, err
}

// commit sends what was queued to the namespace ns, that of the thread if nil,
// and returns when it is in force. The error is the kernel's for the first
// message that it refused.
func (b *batch) commit(ns *os.File) error {
	if err := b.Flush(); !errors.Is(err, errQueued) {
		return fmt.Errorf("cannot put the rules together: %w", err)
	}
	// The last message but the end of the batch is answered once all is in
	// force; what fails is answered in any case.
	last := len(b.queued) - 2
	for i := range b.queued {
		h := &b.queued[i].Header
		h.Flags &^= unix.NLM_F_ECHO
		if i != last {
			h.Flags &^= netlink.Acknowledge
		}
		h.Length, h.Sequence, h.PID = 0, 0, 0 // the connection's to fill in
	}
	var config netlink.Config
	if ns != nil {
		config.NetNS = int(ns.Fd())
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &config)
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	defer conn.Close()
	if _, err := conn.SendMessages(b.queued); err != nil {
		return err
	}
	_, err = conn.Receive()
	return err
}
