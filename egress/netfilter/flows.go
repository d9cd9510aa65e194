package netfilter

import (
	"encoding/binary"
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// networkOrder is that of all numbers in netfilter's messages.
var networkOrder = binary.BigEndian

// Messages of connection tracking (enum cntl_msg_types).
const (
	msgFlowNew = unix.NFNL_SUBSYS_CTNETLINK<<8 + iota
	msgFlowGet
	msgFlowDelete
)

// Flows tells of the flows of one namespace.
type Flows struct {
	events, requests *socket
	mark, mask       uint32
}

// OpenFlows begins to hear of the flows whose rules asked for it, in the
// thread's network namespace. Those that are listed have a mark that is mark
// under mask.
func OpenFlows(mark, mask uint32) (*Flows, error) {
	events, err := open(room, unix.NFNLGRP_CONNTRACK_NEW, unix.NFNLGRP_CONNTRACK_UPDATE, unix.NFNLGRP_CONNTRACK_DESTROY)
	if err != nil {
		return nil, failed("hear of connections", err)
	}
	requests, err := open(room)
	if err == nil {
		if err = events.insist(); err != nil {
			requests.Close()
		}
	}
	if err != nil {
		events.Close()
		return nil, failed("hear of connections", err)
	}
	return &Flows{events, requests, mark, mask}, nil
}

// Stop ends a Next that waits, and every later one, with os.ErrClosed. The rest
// can be had by Drain.
func (f *Flows) Stop() { f.events.wake() }

// Close lets go of the namespace.
func (f *Flows) Close() {
	f.events.Close()
	f.requests.Close()
}

// Next waits until the kernel tells of flows, and passes them on.
// unix.ENOBUFS says that some messages found no room: List tells which are open.
// Ends are told again until they do.
// os.ErrClosed says that Stop or Close was called.
func (f *Flows) Next(each func(Flow)) error {
	if err := f.events.receive(told(each)); err != nil {
		return failed("hear of a connection", err)
	}
	return nil
}

// Drain passes on what the kernel has told so far.
func (f *Flows) Drain(each func(Flow)) error {
	if err := f.events.drain(told(each)); err != nil {
		return failed("hear of a connection", err)
	}
	return nil
}

// told reads events.
func told(each func(Flow)) func(uint16, uint32, []byte) error {
	return func(kind uint16, _ uint32, data []byte) error {
		if kind != msgFlowNew && kind != msgFlowDelete {
			return nil
		}
		flow, err := parseFlow(data)
		if err != nil {
			return err
		}
		flow.Over = kind == msgFlowDelete
		each(flow)
		return nil
	}
}

// Lost is how many messages found no room so far.
func (f *Flows) Lost() uint32 { return f.events.Lost() }

// List passes on every flow with the mark that the kernel knows, with what has
// gone either way so far. It must not be called twice at once, nor with Forget.
func (f *Flows) List(each func(Flow)) error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = networkOrder
	ae.Uint32(ctMark, f.mark)
	ae.Uint32(ctMarkMask, f.mask)
	b, err := ae.Encode()
	if err != nil {
		return failed("list connections", err)
	}
	err = f.requests.ask(msgFlowGet, unix.NLM_F_DUMP, append(nfgen(0), b...), func(data []byte) {
		if flow, err := parseFlow(data); err == nil && flow.Mark&f.mask == f.mark {
			each(flow)
		}
	})
	if err != nil {
		return failed("list connections", err)
	}
	return nil
}

// Forget has the kernel forget a flow, and tell of its end. One that is
// forgotten already is no error.
func (f *Flows) Forget(flow *Flow) error {
	name, err := flow.name()
	if err == nil {
		err = f.requests.ask(msgFlowDelete, unix.NLM_F_ACK, name, nil)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return failed("forget a connection", err)
	}
	return nil
}
