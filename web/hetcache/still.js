/** Still images on a node whose file input is for videos: the host takes and shows only those there. */
import { after } from "./widget.js";
import { say } from "./words.js";

const IMAGE = /\.(bmp|gif|jpe?g|png|webp)( \[\w+\])?$/i; // those that browsers show
const IMAGE_PREVIEW = "$$canvas-image-preview"; // the host's name for it
const NO_FILE = "(none)"; // what the node has in an empty list
const UPLOAD = "/upload/image"; // the host's, which takes files of every kind

/**
 * Let an image fall on a node.
 *
 * @param node with a widget `file`
 * @param api the host's connection to its server
 * @param {(words: string) => void} fail is told why an image could not be taken
 */
export function takeStills(node, api, fail) {
  const videos = node.onDragDrop;
  node.onDragOver ??= (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = async function (event) {
    const images = [...(event.dataTransfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    const [image] = images;
    if (images.length > 1) {
      fail(say("One image serves every frame. Put an image for each frame in a folder, and give its path below."));
      return true;
    }
    if (!image) return (await videos?.call(this, event)) ?? false;
    try {
      choose(node, await upload(api, image));
    } catch (error) {
      fail(say("The image could not be uploaded ({status}). Copy it into ComfyUI's input folder, and press R.", { status: error.message }));
    }
    return true;
  };
}

/** Let the host show a chosen image as one, and what a run gives as the video it is. */
export function showStills(node) {
  const file = node.widgets?.find((one) => one.name === "file");
  if (!file) return;
  const chosen = () => {
    node.previewMediaType = IMAGE.test(file.value) ? "image" : "video";
    node.hideOutputImages = file.value === NO_FILE; // it would be said to have failed to load
  };
  after(file, "callback", chosen);
  after(node, "onConfigure", chosen);
  after(node, "onExecuted", () => {
    node.previewMediaType = "video";
    node.hideOutputImages = false;
    node.imgs = undefined; // in the classic canvas the image would keep its room
    const drawn = node.widgets.find((one) => one.name === IMAGE_PREVIEW);
    if (drawn) node.removeWidget?.(drawn);
  });
  chosen();
}

async function upload(api, image) {
  const body = new FormData();
  body.append("image", image);
  const answer = await api.fetchApi(UPLOAD, { method: "POST", body });
  if (!answer.ok) throw new Error(answer.status);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

function choose(node, name) {
  const widget = node.widgets.find((one) => one.name === "file");
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(name)) values.push(name);
  const before = widget.value;
  widget.value = name;
  widget.callback?.(name);
  node.onWidgetChanged?.(widget.name, name, before, widget);
}
